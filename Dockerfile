# syntax=docker/dockerfile:1

FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY engine ./engine
COPY scripts/lua ./scripts/lua
# `embedded` as well: the same image runs alone (`miaocang up`) and beside servers of its own (deploy/compose.yaml).
RUN python -m venv /opt/miaocang \
    && /opt/miaocang/bin/pip install --no-cache-dir --disable-pip-version-check '.[embedded]'

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin miaocang \
    && install --directory --owner=miaocang --group=miaocang --mode=0700 /data
COPY --from=build /opt/miaocang /opt/miaocang
ENV PATH=/opt/miaocang/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MIAOCANG_DATA_DIR=/data
USER miaocang
WORKDIR /data
VOLUME /data
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
# The port is the gateway's; Compose gives the back office its own check.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
ENTRYPOINT ["miaocang"]
CMD ["up", "--host", "0.0.0.0"]
