"""VJP rules, one file for each family of operators."""
