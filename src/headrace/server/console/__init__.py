"""The web console: one page, and a small process that stands between browsers and the admin plane.

Why it is a page of our own: docs/adr/0004-console.md.
"""
