"""What the gateway asks of addresses that clients have given."""
