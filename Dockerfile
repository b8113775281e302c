# The one definition of the environment.
#   docker build -t pg_llm .                                                     the server with pg_llm, PostgreSQL 17
#   docker build -t pg_llm --build-arg PG_MAJOR=18 --build-arg RELEASE=forky .   the same, PostgreSQL 18
# The stage `test` is where tools/run-in-image runs; it holds tools only, so that a change of the source does not rebuild it.
# Few RUN lines on purpose: a storage driver without overlays copies the whole image for each.

ARG RELEASE=trixie

FROM debian:${RELEASE}-slim AS runtime
ARG RELEASE
ARG PG_MAJOR=17
ENV LANG=C.UTF-8 PATH=/usr/lib/postgresql/${PG_MAJOR}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# The user's number is fixed because it owns the files of a volume, which may outlive this image.
# Mirrors with a frozen copy of Debian testing have an expired Release file: accepted for testing alone.
RUN set -eu; \
    export DEBIAN_FRONTEND=noninteractive; \
    if [ "$RELEASE" = forky ]; then echo 'Acquire::Check-Valid-Until "false";' > /etc/apt/apt.conf.d/90frozen-release; fi; \
    groupadd --system --gid 999 postgres; \
    useradd --system --uid 999 --gid postgres --home-dir /var/lib/postgresql --shell /bin/bash postgres; \
    mkdir -p /etc/postgresql-common/createcluster.d; \
    echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/image.conf; \
    apt-get update -q; \
    apt-get install -qy --no-install-recommends ca-certificates python3 postgresql-$PG_MAJOR \
        postgresql-plpython3-$PG_MAJOR postgresql-$PG_MAJOR-pgvector postgresql-$PG_MAJOR-partman; \
    install -d -o postgres -g postgres -m 0700 /var/lib/postgresql/data; \
    install -d -o postgres -g postgres -m 2775 /run/postgresql; \
    apt-get clean; \
    rm -rf /var/lib/apt/lists/*


FROM runtime AS test
ARG PG_MAJOR=17
COPY requirements-test.txt /opt/
# The secrets are optional: `ca` is a bundle of certificates to trust, `pip` a pip.conf; neither stays in the image.
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip set -eu; \
    export DEBIAN_FRONTEND=noninteractive; \
    apt-get update -q; \
    apt-get install -qy --no-install-recommends git make pgbouncer python3-venv redis-server unzip \
        postgresql-$PG_MAJOR-cron postgresql-$PG_MAJOR-hypopg postgresql-server-dev-$PG_MAJOR; \
    apt-get clean; \
    rm -rf /var/lib/apt/lists/*; \
    if [ -s /run/secrets/ca ]; then \
        export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca REQUESTS_CA_BUNDLE=/run/secrets/ca; \
    fi; \
    if [ -s /run/secrets/pip ]; then export PIP_CONFIG_FILE=/run/secrets/pip; fi; \
    python3 -m venv /opt/venv; \
    /opt/venv/bin/pip install -q --no-cache-dir --disable-pip-version-check -r /opt/requirements-test.txt
ENV PATH=/opt/venv/bin:${PATH}


FROM runtime AS build
ARG PG_MAJOR=17
COPY . /src
RUN set -eu; \
    apt-get update -q; \
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends make postgresql-server-dev-$PG_MAJOR; \
    make -C /src install DESTDIR=/out PG_CONFIG=/usr/lib/postgresql/$PG_MAJOR/bin/pg_config


FROM runtime
COPY --from=build /out /
COPY --chmod=0755 tools/docker-entrypoint /usr/local/bin/
ENV PGDATA=/var/lib/postgresql/data/pgdata
VOLUME /var/lib/postgresql/data
USER postgres
EXPOSE 5432
# Fast shutdown: the server does not wait for its clients to leave.
STOPSIGNAL SIGINT
# Over TCP, because the server listens on its socket alone while the database is being made.
HEALTHCHECK --start-period=60s --interval=10s --timeout=5s CMD ["pg_isready", "--quiet", "--host=127.0.0.1"]
ENTRYPOINT ["docker-entrypoint"]
