"""Load Balancer: what is known of replicas, the global prefix index, one policy a file."""
