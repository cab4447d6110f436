# A server of gRPC without generated code: messages are bytes. Prints its port, and stops with its process.
import sys
import threading
import time
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

NAME = sys.argv[1] if len(sys.argv) > 1 else "one"
lock = threading.Lock()
seen = {}


def count(what):
    with lock:
        seen[what] = seen.get(what, 0) + 1
        return seen[what]


def get(request, context):
    count("Get")
    context.send_initial_metadata((("x-from", NAME),))
    context.set_trailing_metadata((("x-tail", "t"), ("x-bytes-bin", b"\x00\xff")))
    return request


def meta(request, context):
    return "\n".join(f"{key}={value}" for key, value in context.invocation_metadata()).encode()


def fail(request, context):
    count("Fail")
    code = next(code for code in grpc.StatusCode if code.value[0] == int(request))
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(code, "that failed: 50 %")


def fail_late(request, context):
    # The head goes out before the failure.
    context.send_initial_metadata((("x-from", NAME),))
    fail(request, context)


def flaky(request, context):
    # Fails once for each name.
    if count("Flaky " + request.decode()) == 1:
        context.abort(grpc.StatusCode.UNAVAILABLE, "once")
    return request


def pushed_back(request, context):
    count("PushedBack")
    context.set_trailing_metadata((("grpc-retry-pushback-ms", request.decode()),))
    context.abort(grpc.StatusCode.UNAVAILABLE, "not now")


def left(request, context):
    return str(context.time_remaining()).encode()


def wait(request, context):
    count("Wait")
    gone = threading.Event()
    context.add_callback(gone.set)
    if gone.wait(20):
        count("Cancelled")
    return request


def total(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def listing(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def drip(request, context):
    try:
        while True:
            yield b"drop"
            time.sleep(0.02)
    finally:
        count("Cancelled")


def breaks(request, context):
    yield b"one"
    context.abort(grpc.StatusCode.DATA_LOSS, "lost")


def talk(requests, context):
    for request in requests:
        yield request


def asked(request, context):
    with lock:
        return str(seen.get(request.decode(), 0)).encode()


kinds = {
    grpc.unary_unary_rpc_method_handler: {
        "Get": get, "Meta": meta, "Fail": fail, "FailLate": fail_late, "Flaky": flaky, "SetFlaky": flaky,
        "PushedBack": pushed_back, "Left": left, "Wait": wait, "Asked": asked,
    },
    grpc.stream_unary_rpc_method_handler: {"Total": total},
    grpc.unary_stream_rpc_method_handler: {"List": listing, "Drip": drip, "Breaks": breaks},
    grpc.stream_stream_rpc_method_handler: {"Talk": talk},
}
handlers = {name: kind(handler) for kind, methods in kinds.items() for name, handler in methods.items()}
options = (("grpc.max_receive_message_length", 8 << 20), ("grpc.so_reuseport", 0))
server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), options=options)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("pkg.Echo", handlers),))
checks = health.HealthServicer()
checks.set("", health_pb2.HealthCheckResponse.SERVING)
health_pb2_grpc.add_HealthServicer_to_server(checks, server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
server.wait_for_termination()
