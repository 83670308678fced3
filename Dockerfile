# prunectl on a CPU, of the release below. Build it in the repository:
#     docker build --tag prunectl .
# From the repository's own source instead:
#     docker build --tag prunectl --build-arg PRUNECTL=. .
# Where the default build of torch is one for CUDA (Linux on x86-64), the image is some GB smaller
# with torch's own index of CPU builds:
#     docker build --tag prunectl --build-arg TORCH_INDEX=ADDRESS .
FROM python:3.12-slim AS build
ARG TORCH_INDEX=""
RUN python -m venv /opt/prunectl
ENV PATH=/opt/prunectl/bin:$PATH
# The version is that of pyproject.toml, whose limits the last step checks.
# hadolint ignore=DL3013
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir --index-url "$TORCH_INDEX" torch; fi
WORKDIR /build
ARG PRUNECTL=prunectl==0.2.0
COPY pyproject.toml README.md LICENSE ./
COPY completions completions
COPY src src
# hadolint ignore=DL3013
RUN pip install --no-cache-dir "$PRUNECTL"

FROM python:3.12-slim
COPY --from=build /opt/prunectl /opt/prunectl
# Containers of CI systems may run as any user, so what is written has a place that all can write to.
RUN useradd --create-home --uid 1000 prunectl && mkdir -m 1777 /cache /work
ENV PATH=/opt/prunectl/bin:$PATH \
    HF_HOME=/cache/huggingface \
    PRUNECTL_CACHE_DIR=/cache/prunectl \
    NUMBA_CACHE_DIR=/cache/numba \
    PYTHONUNBUFFERED=1
USER 1000
WORKDIR /work
ENTRYPOINT ["prunectl"]
CMD ["--help"]
