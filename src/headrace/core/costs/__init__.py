"""The performance model that scheduler, balancer, autoscaler and twin share."""
