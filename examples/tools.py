"""A model asks for a tool, the program runs it, the model answers with the result.

python examples/tools.py model.gguf
"""

import json
import sys

import qwen_edge

WEATHER = {
    "name": "get_weather",
    "description": "Current weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def get_weather(city: str) -> dict[str, object]:
    return {"temp_c": 21, "sky": "sunny" if city != "London" else "rainy"}


def main(path: str) -> None:
    with qwen_edge.load(path) as model, model.session(tools=[WEATHER]) as session:
        reply = session.send("What is the weather in Vienna?")
        results = []
        for call in reply.tool_calls:
            print("call:", call.name, call.arguments)
            results.append(qwen_edge.Message("tool", json.dumps(get_weather(**call.arguments))))
        if results:
            reply = session.send(results)
        print(reply.text)


if __name__ == "__main__":
    main(sys.argv[1])
