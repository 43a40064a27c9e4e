# docker build -t chinese-llm-sft .
# docker run --rm -v "$PWD/output:/app/output" chinese-llm-sft
FROM python:3.11-slim

# A pip mirror, if you need one: --build-arg PIP_INDEX_URL=...
ARG PIP_INDEX_URL

WORKDIR /app
SHELL ["/bin/bash", "-c"]

# The packages first: this layer is only built again when the pins change.
COPY setup.sh requirements.txt ./
RUN source ./setup.sh && PIP_NO_CACHE_DIR=1 set_up requirements.txt

COPY . .

# Needs no network and no GPU. For a shell instead: docker run -it chinese-llm-sft bash --rcfile .venv/bin/activate
CMD ["bash", "quickstart.sh"]
