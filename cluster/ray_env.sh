# What Ray reads in its environment where it starts; docs/operations.md says why. Every machine of ray_up.yaml sources it.
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
export RAY_SERVE_PROXY_USE_GRPC=1
export RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH=2147483647
export RAY_SERVE_CONTROL_LOOP_INTERVAL_S=0.5
export RAY_SERVE_METRICS_EXPORT_INTERVAL_MS=1000
export RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S=2
export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.ingress.stand_in.middlewares
