"""The background process that supervises the jobs of one experiments folder."""
