"""What Ray Serve reads in its environment where Ray starts, as this service wants it. docs/operations.md says why.

`serve-app up` and the KubeRay manifest set it; `cluster/ray_env.sh` does for plain machines.
"""

SERVE_SETTINGS = {
    "RAY_SERVE_PROXY_USE_GRPC": "1",  # to the ingress: cheaper than Ray tasks
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),  # bytes, for a whole answer; Ray has 4 MiB
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # Ray's 0.1 takes 5 % of a core at rest
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",  # of Ray Serve's own metrics; Ray has 100
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",  # with Ray's 10 a dead proxy is missed for 20
    # Without it a process that died is answered for with a bare 500.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.ingress.stand_in.middlewares",
}
# The proxy for production, and what names the executable that Ray Serve starts as HAProxy: `serve-app-haproxy`.
HAPROXY_SETTINGS = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
HAPROXY_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
_FAREWELL_S = 2.5  # for an engine and the router to say that a request is late before Ray Serve says it
_MOST_FOR_FAREWELL = 0.25


def within(serve_timeout_s: float) -> float:
    """What a request may take so that its 504 is our own, where Ray Serve ends it after `serve_timeout_s`."""
    return serve_timeout_s - min(_FAREWELL_S, _MOST_FOR_FAREWELL * serve_timeout_s)
