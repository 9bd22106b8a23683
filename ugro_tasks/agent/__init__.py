"""The background process: it supervises the jobs of one experiments folder."""
