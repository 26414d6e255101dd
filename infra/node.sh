# Environment of a machine of infra/local-cluster.yaml; ~/.bashrc reads it. It holds no secret.
PATH="$HOME/resnet-ray/.venv/bin:$PATH"
export RAY_AUTH_MODE=token                  # the token itself is ~/.ray/auth_token
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
export RAY_UP_enable_autoscaler_v2=0        # autoscaler v2 never contacts machines of the provider `local`
export RAY_JOB_STOP_WAIT_TIME_S=120         # time for a stopped job to commit a checkpoint
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_TRACKING_URI=http://127.0.0.1:5000    # drivers run on the head; workers do not talk to MLflow
# Address and keys of the head's S3 server: RESNET_RAY_STORAGE, AWS_ENDPOINT_URL and so on.
set -a
. "$HOME/.config/resnet-ray/storage.env"
set +a
