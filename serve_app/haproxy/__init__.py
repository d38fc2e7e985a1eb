"""HAProxy chooses the model: a request that names one goes straight to its replicas, not by way of the ingress."""
