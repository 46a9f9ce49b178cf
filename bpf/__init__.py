"""Programs that run inside the kernel: put together, loaded, fed and read. Knows no DNS and no TLS."""
