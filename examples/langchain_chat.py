"""A chat model for LangChain that streams, in a chain, and asks for tools. pip install langchain-core

python examples/langchain_chat.py model.gguf
"""

import json
import sys
import uuid

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, HumanMessage, convert_to_openai_messages
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool

import qwen_edge


class ChatQwenEdge(BaseChatModel):
    model: object  # a qwen_edge.Model
    _llm_type = "qwen-edge"

    def bind_tools(self, tools, **options):
        return self.bind(tools=[convert_to_openai_tool(each) for each in tools], **options)

    def _stream(self, messages, stop=None, run_manager=None, tools=(), **options):
        # A session each time: LangChain sends the whole conversation.
        with self.model.session(tools=tools) as session:
            for chunk in session.stream(convert_to_openai_messages(messages), **options):
                calls = []
                if call := chunk.tool_call:
                    arguments, made_id = json.dumps(call.arguments), uuid.uuid4().hex
                    calls = [{"name": call.name, "args": arguments, "id": made_id, "index": None}]
                if chunk.kind != "thinking":
                    message = AIMessageChunk(chunk.text, tool_call_chunks=calls)
                    yield ChatGenerationChunk(message=message)

    def _generate(self, messages, stop=None, run_manager=None, **options):
        first, *others = self._stream(messages, **options)
        return ChatResult(generations=[sum(others, start=first)])


@tool
def get_weather(city: str) -> str:
    """Current weather of a city."""
    return json.dumps({"temp_c": 21, "sky": "rainy" if city == "London" else "sunny"})


with qwen_edge.load(sys.argv[1]) as model:
    chat = ChatQwenEdge(model=model)
    chain = ChatPromptTemplate.from_template("What is the capital of {country}?") | chat | StrOutputParser()
    print("streamed", *chain.stream({"country": "Greece"}, thinking="off"), sep="|")
    messages = [HumanMessage("What is the weather in Vienna?")]
    messages.append(chat.bind_tools([get_weather]).invoke(messages, thinking="off"))
    messages += [get_weather.invoke(call) for call in messages[-1].tool_calls]
    print("results:", [message.content for message in messages[2:]])
    print("answer:", chat.bind_tools([get_weather]).invoke(messages, thinking="off").content)
