"""Code that checkpoints carry themselves: copied into their folders, loaded only with `trust_remote_code: true`."""
