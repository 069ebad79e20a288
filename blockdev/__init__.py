"""Block devices: the interface, its errors, and local implementations."""
