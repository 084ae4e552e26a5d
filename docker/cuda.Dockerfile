# Training on NVIDIA GPUs:
#     docker build -f docker/cuda.Dockerfile -t so101-cuda .
#     docker run --rm -it --gpus=all --ipc=host -v "$PWD/outputs:/so101/outputs" so101-cuda lerobot-train …
# The wheels of PyTorch bring CUDA; the host needs its driver and the NVIDIA container toolkit.
FROM python:3.12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ffmpeg git libegl1 libgl1-mesa-dri libgles2 make \
    && rm -rf /var/lib/apt/lists/*
# Rendering and video on the GPU, too.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,graphics,utility,video
WORKDIR /so101
COPY . .
ENV PATH="/so101/.venv/bin:$PATH"
RUN make setup
CMD ["bash"]
