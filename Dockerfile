# The image of every node, head or worker: Ray, the service, and what mixes compile.
#   make image                                  # or: docker build -t waveflow .
#   docker run --init --env-file .env --shm-size 1g waveflow
# docs/operations.md#the-image has the rest.
ARG BASE=rayproject/ray:2.60.0-py311

# What has to be installed. It changes with pyproject.toml only, not with the code.
FROM ${BASE} AS requirements
USER root
WORKDIR /build
ARG EXTRAS=""
COPY pyproject.toml ./
RUN python -c "import tomllib; \
p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
names = '${EXTRAS}'.replace(',', ' ').split(); \
extras = [r for name in names for r in p['optional-dependencies'][name]]; \
print(*p['dependencies'], *extras, sep='\n')" > requirements.txt

FROM ${BASE} AS wheel
USER root
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY waveflow_ray waveflow_ray
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir wheel .

FROM ${BASE}
# What inner loops are compiled for. Processors without AVX2, and ARM, need `generic`.
ARG CPU=x86-64-v3
USER root
# `ray up` copies files into the container by rsync, and reaches its workers by ssh from the head's.
# The images of rayproject have both, and the user.
RUN which rsync ssh > /dev/null \
 || (apt-get update && apt-get install -y --no-install-recommends rsync openssh-client \
     && rm -rf /var/lib/apt/lists/*)
RUN getent passwd 1000 > /dev/null \
 || useradd --create-home --shell /bin/bash --uid 1000 --gid users ray
RUN install -d -o 1000 -g users /home/ray /var/cache/numba \
 && install -d -o 1000 -g users -m 700 /home/ray/.ray
# Ray reads HOME from here, and mounts files below it.
ENV HOME=/home/ray \
    NUMBA_CACHE_DIR=/var/cache/numba \
    NUMBA_CPU_NAME=${CPU} \
    NUMBA_CPU_FEATURES=""
WORKDIR /home/ray

COPY constraints.txt /opt/waveflow/
COPY --from=requirements /build/requirements.txt /opt/waveflow/
RUN python -m pip install --no-cache-dir --root-user-action ignore \
    -c /opt/waveflow/constraints.txt -r /opt/waveflow/requirements.txt
COPY --from=wheel /build/wheel/ /opt/waveflow/wheel/
RUN python -m pip install --no-cache-dir --root-user-action ignore --no-deps /opt/waveflow/wheel/*.whl

USER 1000
RUN python -m waveflow_ray.audio.warm

# Heavier than a ping: once a minute is enough. Nodes without settings have other means, or none.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s CMD ["waveflow", "health"]

ARG VERSION=""
ARG SOURCE=""
LABEL org.opencontainers.image.title="waveflow-ray" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.source="${SOURCE}"

# No entrypoint: Ray runs the image with `bash` as its command.
CMD ["waveflow", "run"]
