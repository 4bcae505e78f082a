# The app on a rented GPU machine: the torch wheels bring CUDA's libraries, the host brings its driver.
FROM python:3.12-slim-bookworm

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /app

COPY packages.txt ./
# hadolint ignore=DL3008
RUN apt-get update \
    && xargs -a packages.txt apt-get install -y --no-install-recommends \
    && rm -rf /var/lib/apt/lists/*

COPY requirements.txt requirements-listening.txt requirements-cluster.txt ./
# With `--build-arg CLUSTER=1` the image can be part of a Ray cluster (docs/scale.md).
ARG CLUSTER=
# A part of what listens, webrtcvad, comes as C source only.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && pip install --no-cache-dir -r requirements.txt -r requirements-listening.txt \
        ${CLUSTER:+-r requirements-cluster.txt} \
    && apt-get purge -y --auto-remove gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# Weights that were downloaded once stay in the volume.
RUN useradd --create-home --uid 1000 csm && install -d -o csm -g csm /models
ENV HF_HOME=/models \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860 \
    PYTHONUNBUFFERED=1
VOLUME /models

COPY LICENSE app.py ./
COPY prompts prompts/
COPY csm csm/

USER 1000
EXPOSE 7860
# The published model may take half an hour to arrive at the first start.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
CMD ["python", "app.py"]
