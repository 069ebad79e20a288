"""What a block device is: the interface, its errors, and local implementations."""
