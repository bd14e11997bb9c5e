"""The client of the Flower simulation, in a module that Ray's workers import (else Ray would pickle the data)."""

import os
from functools import cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peers import torch_models
from task import load

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Trains one client, all that it needs being in this worker since its first call."""
    task, clients, model, optimizer = prepared()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = clients[context.node_config["partition-id"]]
    for batch_images, batch_labels in torch_models.Loader(images, labels, task.batch_size):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch_images), batch_labels).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(labels)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@cache
def prepared() -> tuple:
    torch.set_num_threads(1)
    task = load(Path(os.environ["BENCHMARK_TASK"]))
    model = torch_models.build(task.model)
    return task, torch_models.clients(task), model, torch.optim.SGD(model.parameters(), task.learning_rate)
