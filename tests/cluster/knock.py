"""Knocks at ports without a token and prints, as JSON, what each answers: `knock.py HOST PORT...`.

The answer is gRPC's or HTTP's code, and "open" where something is given away.
"""

import http.client
import json
import sys

import grpc

# A method that whoever listens there has, if it is gRPC.
METHODS = {
    6379: "NodeInfoGcsService/GetAllNodeInfo",
    8076: "ObjectManagerService/Push",
    8077: "NodeManagerService/GetNodeStats",
    8079: "ReporterService/GetTraceback",
    10001: "RayletDriver/ClusterInfo",
}
OF_WORKERS = "CoreWorkerService/GetCoreWorkerStats"
HTTP = {8078, 8080, 8265, 44217, 44227, 52365}


def knock(host: str, port: int) -> str:
    return ask_http(host, port) if port in HTTP else ask_grpc(host, port)


def ask_grpc(host: str, port: int) -> str:
    method = METHODS.get(port, OF_WORKERS)
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=5)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "open"


def ask_http(host: str, port: int) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/api/jobs/" if port == 8265 else "/")
        status = connection.getresponse().status
    except OSError:
        return "unreachable"
    finally:
        connection.close()
    return "open" if status == 200 else str(status)


if __name__ == "__main__":
    print(json.dumps({port: knock(sys.argv[1], int(port)) for port in sys.argv[2:]}))
