"""HTTP/1.1 for one server: parsing with hard caps, deadlines, answers. Knows no routes."""
