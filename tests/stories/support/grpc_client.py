# What the clients of the stories begin with: messages are bytes.
import sys
import threading
import time

import grpc

ADDRESS = sys.argv[1]
channel = grpc.insecure_channel(ADDRESS, options=(("grpc.max_receive_message_length", 8 << 20),))


def unary(method):
    return channel.unary_unary("/pkg.Echo/" + method)


def failure(method, request=b"", **rest):
    """The error of a call that fails."""
    try:
        unary(method)(request, **rest)
    except grpc.RpcError as error:
        return error
    raise AssertionError(method + " did not fail")


def soon(holds):
    end = time.time() + 10
    while not holds():
        assert time.time() < end, "not within 10 s"
        time.sleep(0.02)


