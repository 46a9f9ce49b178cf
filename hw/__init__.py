"""The hardware at hand: serial console, LED, watchdog, flash health."""
