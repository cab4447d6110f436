# One static binary and its configuration; no shell, no libraries.
#   docker build --build-arg COMMIT="$(git rev-parse --short HEAD)" -t outrigger .
# Any Debian-like image with Rust, gcc and libc6-dev can be the builder, and anything the base.
ARG BUILDER=rust:1.95-slim-bookworm
ARG BASE=scratch

FROM ${BUILDER} AS build
WORKDIR /outrigger
COPY . .
ARG COMMIT=unknown
# A target that is named keeps RUSTFLAGS away from build scripts and macros, which cannot be static.
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
    && export OUTRIGGER_COMMIT="${COMMIT}" RUSTFLAGS="-C target-feature=+crt-static" \
    && cargo build --release --locked --bin outrigger --target "${target}" \
    && mv "target/${target}/release/outrigger" /outrigger.static \
    && rm -rf target

FROM ${BASE}
COPY --from=build /outrigger.static /usr/local/bin/outrigger
COPY deploy/outrigger.toml /etc/outrigger/outrigger.toml
USER 65532:65532
# The listener; metrics, liveness and readiness.
EXPOSE 8080 9901
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=2s --start-period=5s --retries=3 CMD ["/usr/local/bin/outrigger", "probe"]
ENTRYPOINT ["/usr/local/bin/outrigger"]
CMD ["run"]
