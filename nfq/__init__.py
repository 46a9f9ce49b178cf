"""The packet hook: sees the name in the first packets of every flow, then gets out of the way."""
