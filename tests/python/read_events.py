"""Reads everything on backup.> and restore.> with the CloudEvents SDK: read_events.py URL.

Prints one JSON line an event: type, id, subject of the message, data. An event that the SDK refuses ends the program.
"""

import asyncio
import json
import sys

import nats
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent


async def main() -> None:
    client = await nats.connect(sys.argv[1])
    jetstream = client.jetstream()
    subscription = await jetstream.subscribe(">", stream="BACKUP", ordered_consumer=True)
    remaining = (await jetstream.stream_info("BACKUP")).state.messages
    while remaining:
        message = await subscription.next_msg(timeout=10)
        assert message.headers["content-type"] == "application/cloudevents+json", message.headers
        event = JSONFormat().read(CloudEvent, message.data)
        assert event.get_type() == message.subject, (event.get_type(), message.subject)
        assert message.headers["Nats-Msg-Id"] == event.get_id()
        print(json.dumps({"type": event.get_type(), "id": event.get_id(), "data": event.get_data()}))
        remaining -= 1
    await client.close()


asyncio.run(main())
