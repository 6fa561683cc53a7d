"""How long a step takes, beside what it must take at least, and beside other libraries."""
