# One image for every service, nats-server included; the command says which. Build: docker build -t llama-orch .
ARG BASE=python:3.13-slim
FROM ${BASE}

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A certificate bundle of the base image, for networks that open TLS: --build-arg PIP_CERT=/etc/ssl/certs/…
ARG PIP_CERT

# The built-in engine computes with OpenMP.
RUN ls /usr/lib/*/libgomp.so.1 || (apt-get update -qq && apt-get install -qq --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*)

WORKDIR /opt/llama-orch
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

COPY requirements.lock ./
RUN pip install --quiet --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY nats.conf /
COPY services services
COPY shared shared
# true compiles the scheduler's core: the same decisions in half the time. Needs a base with gcc: BASE=python:3.13
ARG HATCH_BUILD_HOOK_ENABLE_CUSTOM=false
RUN pip install --quiet --no-deps --no-build-isolation .

# /data holds queues, engines and models. /users has a folder for each user of the bus in compose.yaml, with its secret
# seed, and /bus their public keys. A new volume belongs to whom its folder here belongs: the user that everything runs as.
RUN mkdir -m 700 /data /bus /users && cd /users \
 && mkdir -m 700 gateway scheduler orchctl provisioner-node-1 poold-node-1 && chown -R 1000:1000 /data /bus /users
USER 1000:1000
ENV HOME=/data LLORCH_STATE_DIR=/data
VOLUME /data
CMD ["orchctl", "--help"]
