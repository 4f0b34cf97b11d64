"""What is asked of every page in a browser."""

from __future__ import annotations

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}

CONTRAST = """() => {
  const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!c.endsWith(', 0)')) return c; } return 'rgb(255, 255, 255)'; };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  for (let t; t = walker.nextNode();) if (t.data.trim()) {
    const e = t.parentElement, s = getComputedStyle(e);
    const [low, high] = [light(s.color), light(ground(e))].sort((a, b) => a - b);
    found.push({ contrast: (high + 0.05) / (low + 0.05), size: parseFloat(s.fontSize), text: t.data });
  }
  return found;
}"""
