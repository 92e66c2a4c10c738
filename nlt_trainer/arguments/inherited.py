"""Sentence Transformers' options: those that decide a run, choose what it saves, do neither, or are refused here.

Each field of `SentenceTransformerTrainingArguments` is in exactly one of the four. A test compares them with the
installed version.
"""

from __future__ import annotations

DECIDING = frozenset(
    """
    adam_beta1 adam_beta2 adam_epsilon batch_sampler bf16 data_seed dataloader_drop_last fp16
    gradient_accumulation_steps learning_rate learning_rate_mapping lr_scheduler_kwargs lr_scheduler_type max_grad_norm
    max_steps num_train_epochs optim optim_args optim_target_modules per_device_train_batch_size seed
    tf32 train_sampling_strategy warmup_ratio warmup_steps weight_decay
    """.split()
)
"""Options that decide the trajectory of training. A run that resumes from a checkpoint must share them."""

CHOOSING = (
    "eval_strategy", "eval_steps", "save_strategy", "save_steps", "load_best_model_at_end", "metric_for_best_model",
)  # fmt: skip
"""Options that choose the checkpoint that is saved, where `load_best_model_at_end` is set."""

OTHER = frozenset(
    """
    activation_checkpointing activation_checkpointing_kwargs bf16_full_eval dataloader_num_workers
    dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers
    ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed disable_tqdm
    eval_delay eval_on_start fsdp fsdp_config full_determinism gradient_checkpointing
    gradient_checkpointing_kwargs log_level log_level_replica log_on_each_node logging_first_step
    logging_steps logging_strategy output_dir parallelism_config project report_to resume_from_checkpoint run_name
    save_on_each_node save_only_model save_total_limit skip_memory_metrics torch_compile torch_compile_backend
    torch_compile_mode torch_empty_cache_steps trackio_bucket_id trackio_space_id trackio_static_space_id use_cpu
    """.split()
)
"""Options that do not decide it: those of files, logs, speed, memory and evaluation."""

_NO_DATASET = (
    "training evaluates by searching the collection of dev_split, without an evaluation dataset; leave it out"
)
_PUBLISH = "a run is published when it is finished; leave it out and run `nlt push`"
_LIGER = "its kernels are for models that predict tokens and would leave the encoder as it is; leave it out"
_ONE_DATASET = "a recipe trains on one dataset with one encoder; leave it out"

REFUSED = {
    "fp16_full_eval": "embeddings are computed in float32, or in bfloat16 with bf16_full_eval; leave it out",
    "prompts": "set encoder_prompts in block `model:`, which the saved encoder keeps",
    "router_mapping": _ONE_DATASET,
    "multi_dataset_batch_sampler": _ONE_DATASET,
    "label_names": _ONE_DATASET,
    "greater_is_better": "nDCG@10 and its like are better the greater they are, and a loss the smaller; leave it out",
    "length_column_name": "train_sampling_strategy: group_by_length measures the texts by itself; leave it out",
    "label_smoothing_factor": "no objective here has class labels to smooth; leave it out",
    "neftune_noise_alpha": "the library cannot add this noise to an encoder's embeddings and fails; leave it out",
    "auto_find_batch_size": (
        "a batch that shrinks to fit the memory trains another encoder; set per_device_train_batch_size"
    ),
    "enable_jit_checkpoint": (
        "training would end as if it were finished; SIGTERM ends `nlt train` with a checkpoint anyway; leave it out"
    ),
    "ignore_data_skip": "a resumed run would train again on rows that it has had in the epoch; leave it out",
    "accelerator_config": (
        "it would change which rows form a batch; set per_device_train_batch_size and gradient_accumulation_steps"
    ),
    "dataloader_in_order": "batches that come as they are ready would make training a matter of chance; leave it out",
    "restore_callback_states_from_checkpoint": (
        "a resumed run reads the costs of its checkpoint by itself, and this would end the count of LLM tokens; "
        "leave it out"
    ),
    "use_liger_kernel": _LIGER,
    "liger_kernel_config": _LIGER,
    "use_cache": "an encoder generates nothing; leave it out",
    "average_tokens_across_devices": "losses are means over queries, alike in all processes; leave it out",
    "dataloader_multiprocessing_context": "workers begin as the library begins them; leave it out",
    "include_num_input_tokens_seen": "the log has lm_tokens, which the LLM reads; leave it out",
    "local_rank": "`accelerate launch` and `torchrun` number the processes; leave it out",
    "logging_nan_inf_filter": "a loss that is infinite or NaN ends training, and none is logged; leave it out",
    "remove_unused_columns": "training rows only have columns that are read; leave it out",
    "per_device_eval_batch_size": _NO_DATASET,
    "prediction_loss_only": _NO_DATASET,
    "include_for_metrics": _NO_DATASET,
    "batch_eval_metrics": _NO_DATASET,
    "eval_accumulation_steps": _NO_DATASET,
    "eval_do_concat_batches": _NO_DATASET,
    "eval_use_gather_object": _NO_DATASET,
    "do_train": "the stage is named on the command line; leave it out",
    "do_eval": "the stage is named on the command line; leave it out",
    "do_predict": "the stage is named on the command line; leave it out",
    "push_to_hub": _PUBLISH,
    "hub_token": "a token in a recipe would be kept in files; leave it out and log in with `hf auth login`",
    "hub_private_repo": _PUBLISH,
    "hub_model_id": _PUBLISH,
    "hub_strategy": _PUBLISH,
    "hub_always_push": _PUBLISH,
    "hub_revision": _PUBLISH,
}
"""Option that would do nothing here, or do harm, such as other training than DECIDING says -> what to do instead."""
