"""The roof: starts the processes, takes in their events, keeps the ring, answers people."""
