"""The ring: keeps every record for the promised days on a fixed budget of flash."""
