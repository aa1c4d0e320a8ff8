"""Networks: layers, their registry, heads, and the parser that composes them from yaml."""
