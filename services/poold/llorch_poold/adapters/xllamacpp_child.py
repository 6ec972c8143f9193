"""llama.cpp's own HTTP server out of the wheel `xllamacpp`, as a child process with a llama-server-like command line.

Runs in the engine's own environment, as a file: it may import the standard library and xllamacpp, nothing of ours. The
node starts it so that it dies with the node; it stops when standard input closes or SIGTERM comes. Prints its address
as one JSON line when the model is loaded; a model that does not load ends it with the reason on standard error.
"""

import argparse
import json
import os
import signal
import sys


def main() -> None:
    parser = argparse.ArgumentParser(prog="xllamacpp-child")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--ctx-size", type=int, required=True)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--gpu-layers", type=int, default=0)
    parser.add_argument("--slot-save-path", default="", help="without one llama.cpp erases no slot either")
    parser.add_argument("--embeddings", action="store_true")
    parser.add_argument("--pooling", choices=("mean", "cls", "last"))
    parser.add_argument("--reranking", action="store_true")
    parser.add_argument("--chat-template-file", default="", help="instead of the model's own, as llama-server has it")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

    import xllamacpp  # type: ignore[import-not-found]  # only in the engine's own environment

    if options.gpu_layers and not any("GPU" in str(device["type"]) for device in xllamacpp.get_device_info()):
        sys.exit("this build of xllamacpp sees no GPU: it would run on the CPU, which is never a fallback (ORCH-1102)")
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.n_ctx = options.ctx_size
    params.n_parallel = options.parallel
    params.cont_batching = options.parallel > 1
    params.n_gpu_layers = options.gpu_layers
    params.hostnames = [options.host]
    params.port = options.port
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.slot_save_path = options.slot_save_path
    params.cache_ram_mib = 0
    params.fit_params = False
    params.kv_unified = False
    params.ui = False
    if options.batch_size:
        params.n_batch = params.n_ubatch = options.batch_size
    params.embedding = options.embeddings or options.reranking
    pooling = "rank" if options.reranking else options.pooling
    if pooling:
        params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{pooling.upper()}")
    if options.chat_template_file:
        with open(options.chat_template_file, encoding="utf-8") as file:
            params.chat_template = file.read()
    if options.threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    server = xllamacpp.Server(params)
    sys.stdout.write(json.dumps({"listening": server.listening_address, "version": xllamacpp.__version__}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
