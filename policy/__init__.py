"""What is allowed, and the words that every other package shares. Pure: no sockets, no clocks, no files."""
