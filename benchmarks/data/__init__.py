"""What large arguments cost: time, bytes over sockets, memory."""
