"""llama.cpp's HTTP server in a process of its own: ``python llama_cpp_server.py MODEL.gguf``.

Prints its URL once the model is loaded, and serves until it is killed.
"""

from __future__ import annotations

import sys
import threading

import xllamacpp


def main() -> None:
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 2048
    params.n_parallel = 4
    params.endpoint_metrics = True
    params.warmup = False
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
