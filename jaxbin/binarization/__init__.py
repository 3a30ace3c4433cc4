"""What makes weights binary: layers, their masks, the orders and schedules."""
