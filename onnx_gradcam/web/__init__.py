"""Write static web pages that explain images in the visitor's browser."""
