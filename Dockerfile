# One image for every service, nats-server included; the command says which. Build: docker build -t llama-orch .
ARG BASE=python:3.13-slim
FROM ${BASE}

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A certificate bundle of the base image, for networks that open TLS: --build-arg PIP_CERT=/etc/ssl/certs/…
ARG PIP_CERT

WORKDIR /opt/llama-orch
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

COPY requirements.lock ./
RUN pip install --quiet --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY services services
COPY shared shared
# true compiles the scheduler's core: the same decisions in half the time. Needs a base with gcc: BASE=python:3.13
ARG HATCH_BUILD_HOOK_ENABLE_CUSTOM=false
RUN pip install --quiet --no-deps --no-build-isolation .

# /data holds queues, engines and models; it belongs to the user that everything runs as.
RUN mkdir /data && chown 1000:1000 /data
USER 1000:1000
ENV HOME=/data LLORCH_STATE_DIR=/data
VOLUME /data
CMD ["orchctl", "--help"]
