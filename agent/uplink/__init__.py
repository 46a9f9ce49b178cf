"""The uplink: records and heartbeats to the centre over MQTT, signed orders back down. The ring is the outbox."""
