"""The pods of a `RayService`: containers without privileges, their probes, volumes, secrets and their end.

KubeRay adds what starts Ray itself (command, shared memory, addresses, the token).
"""

from dataclasses import dataclass
from typing import Any

from serve_app.config.serve_settings import SERVE_SETTINGS
from serve_app.kubernetes.worker_groups import WorkerGroup

USER_ID = 1000  # the Dockerfile's
HOME = "/home/serve"
AGENT_PORT = 52365  # where each node's Ray agent answers for its health
STOP_MARGIN_S = 30  # after the drain, for Ray's own end
# Small models fill machines that are in use first, or none would be left whole for a model on several GPUs.
PACKING = {"name": "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY", "value": "1"}
HEAD_CPUS, HEAD_MEMORY_GIB = 2, 8


@dataclass(frozen=True, slots=True)
class PodOptions:
    """What all pods share."""

    name: str
    image: str
    port: int
    drain_s: int
    secret: str
    secret_env: tuple[str, ...]
    cache_claim: str | None
    gpu_resource: str
    gpu_node_selector: dict[str, str]
    memory_gib_per_cpu: int
    memory_gib_per_gpu: int


def head_group(options: PodOptions) -> dict[str, Any]:
    """The head: Ray's control plane and no replica that needs a CPU."""
    ray = _container("ray-head", options, _resources(HEAD_CPUS, HEAD_MEMORY_GIB))
    ray["ports"] = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
        {"name": "metrics", "containerPort": 8080},
        {"name": "serve", "containerPort": options.port},
    ]
    health = {"httpGet": {"path": "/api/healthz", "port": AGENT_PORT}, "periodSeconds": 5, "timeoutSeconds": 5}
    ray["livenessProbe"] = {**health, "initialDelaySeconds": 30, "failureThreshold": 120}
    ray["readinessProbe"] = {**health, "initialDelaySeconds": 10, "failureThreshold": 10}
    spec = {**_pod_spec(options), "containers": [ray], "volumes": _volumes(options)}
    return {
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
        "template": {"metadata": {"labels": _labels(options)}, "spec": spec},
    }


def worker_group(group: WorkerGroup, options: PodOptions) -> dict[str, Any]:
    """Workers of one size. A pod is ready once Serve's proxy in it takes requests, and drains before it ends."""
    memory_gib = group.num_cpus * options.memory_gib_per_cpu + group.num_gpus * options.memory_gib_per_gpu
    resources = _resources(group.num_cpus, memory_gib, {options.gpu_resource: group.num_gpus})
    ray = _container("ray-worker", options, resources)
    ray["ports"] = [{"name": "metrics", "containerPort": 8080}, {"name": "serve", "containerPort": options.port}]
    ray["livenessProbe"] = {
        "httpGet": {"path": "/api/healthz", "port": AGENT_PORT},
        "initialDelaySeconds": 30, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 120,
    }  # fmt: skip
    ray["readinessProbe"] = {  # one failure takes it out: a draining proxy says no at once
        "httpGet": {"path": "/-/healthz", "port": "serve"},
        "initialDelaySeconds": 10, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 1,
    }  # fmt: skip
    ray["lifecycle"] = {"preStop": {"exec": {"command": ["/bin/sh", "-c", _drain_command(options.drain_s)]}}}
    spec = {
        **_pod_spec(options),
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": options.drain_s + STOP_MARGIN_S,
        **_whereabouts(group, options),
        "containers": [ray],
        "volumes": _volumes(options),
    }
    return {
        "groupName": group.name,
        "replicas": group.min_machines,
        "minReplicas": group.min_machines,
        "maxReplicas": group.max_machines,
        "rayStartParams": {},
        "template": {"metadata": {"labels": {**_labels(options), "serve-app/group": group.name}}, "spec": spec},
    }


def pod_security(is_read_only: bool = True) -> dict[str, Any]:
    """A container's securityContext that Kubernetes' `restricted` standard accepts."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": is_read_only,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _drain_command(drain_s: int) -> str:
    """Ask Ray to empty this node, and wait: Serve starts the replicas elsewhere, then the raylet ends by itself."""
    return (
        "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the pod is being deleted' "
        f"--deadline-remaining-seconds {drain_s} && sleep {drain_s}"
    )


def _container(name: str, options: PodOptions, resources: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "image": options.image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": pod_security(),
        "env": [
            {"name": "HOME", "value": HOME},
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},  # else Ray tells its makers about the cluster
            PACKING,
            *({"name": name, "value": value} for name, value in SERVE_SETTINGS.items()),
            {"name": "HF_HOME", "value": f"{HOME}/cache/huggingface"},
            {"name": "SERVE_APP_CACHE", "value": f"{HOME}/cache/serve_app"},
            *(
                {"name": key, "valueFrom": {"secretKeyRef": {"name": options.secret, "key": key, "optional": True}}}
                for key in options.secret_env
            ),
        ],
        "resources": resources,
        "volumeMounts": [
            {"name": "home", "mountPath": HOME},
            {"name": "cache", "mountPath": f"{HOME}/cache"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "ray-logs", "mountPath": "/tmp/ray"},
        ],
    }


def _volumes(options: PodOptions) -> list[dict[str, Any]]:
    """The only places that can be written, since the image can't."""
    cache: dict[str, Any] = {"emptyDir": {}}
    if options.cache_claim:
        cache = {"persistentVolumeClaim": {"claimName": options.cache_claim}}
    return [
        {"name": "home", "emptyDir": {}},
        {"name": "cache", **cache},
        {"name": "tmp", "emptyDir": {}},
        {"name": "ray-logs", "emptyDir": {}},
    ]


def _resources(num_cpus: int, memory_gib: int, devices: dict[str, int] | None = None) -> dict[str, Any]:
    """Requests are limits: Ray plans with the limits, so they must be there."""
    amounts: dict[str, Any] = {"cpu": str(num_cpus), "memory": f"{memory_gib}Gi"}
    amounts |= {device: str(count) for device, count in (devices or {}).items() if count}
    return {"limits": amounts, "requests": amounts}


def _pod_spec(options: PodOptions) -> dict[str, Any]:
    return {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _whereabouts(group: WorkerGroup, options: PodOptions) -> dict[str, Any]:
    """GPU pods on machines kept for GPUs; the others spread, so that one machine's end leaves an ingress."""
    if group.num_gpus:
        selector = {"nodeSelector": options.gpu_node_selector} if options.gpu_node_selector else {}
        return selector | {
            "tolerations": [{"key": options.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}]
        }
    return {
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {**_labels(options), "serve-app/group": group.name}},
            }
        ]
    }


def _labels(options: PodOptions) -> dict[str, str]:
    return {"app.kubernetes.io/part-of": options.name}
