"""Results as content-hashed directories, a concern a file: identity, steps, jobs, leases, manifests, provenance."""
