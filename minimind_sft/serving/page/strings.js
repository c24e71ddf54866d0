// The page's words in English and Chinese.
export const STRINGS = {
  en: {
    page: "Chat", skip: "Go to the message field", chats: "Conversations", newChat: "New chat", menu: "Conversations",
    close: "Close", settings: "Settings", model: "Model", compare: "Compare", compareWith: "with",
    compareHint: "Ask two models at once and vote", think: "Think", thinkHint: "Let the model think before it answers",
    message: "Message", send: "Send", stop: "Stop", keys: "Enter sends, Shift + Enter starts a line, Esc stops",
    welcome: "What shall we try?", welcomeNote: "Conversations are kept in this browser only; the server keeps nothing.",
    example1: "Who are you?", example2: "How do you say \"pen\" in Chinese?", example3: "What is the capital of Japan?",
    example4: "Write the word sun 4 times.",
    question: "You", answer: "Answer", answerA: "Answer A", answerB: "Answer B", copy: "Copy", copied: "Copied",
    notCopied: "Could not copy", edit: "Edit", regenerate: "Answer again", cancel: "Cancel", sendEdited: "Send",
    earlier: "Previous version", later: "Next version", version: "{at} of {all}",
    thinking: "Thinking …", thought: "Thoughts", writing: "The model is answering.", ended: "The answer:",
    table: "Table", tokens: "{n} tokens", oneToken: "1 token", speed: "{n} tokens/s", first: "first after {n} s", seed: "seed {n}",
    call: "Call of", callResult: "Result of {name}", callHint: "What the function returned", sendResults: "Send the results",
    results: "Results",
    cutLength: "Cut off: the answer reached the token limit.", cutStopped: "Stopped.",
    cutBroken: "The connection broke in the middle. What came so far is kept.",
    noServer: "The server does not answer.", tryAgain: "Try again", refused: "The server says: {message}",
    busy: "The server is busy; try again in {n} s.", keyNeeded: "The server wants an API key.", enterKey: "Enter the key",
    noModels: "no model", empty: "The model answered nothing.", onlyThoughts: "The model thought and ended without an answer.",
    vote: "Which answer is better?", voteA: "A is better", voteB: "B is better", voteTie: "Equally good", voteBad: "Both bad",
    voted: "Your vote: {vote}.", goesOn: "The conversation goes on from answer {side}.",
    votes: "Votes", noVotes: "No votes yet. Choose Compare, ask two models, and say which answer is better.",
    wins: "{model} wins", ties: "Ties", bothBad: "Both bad", models: "Models",
    saveVotes: "Save all votes (JSON)", savePreferences: "Save as preference rows (JSONL)",
    exportOne: "Save this chat (JSONL)", exportAll: "Save all chats (JSONL)", votesAndTally: "Votes",
    nothingToSave: "There is no complete answer to save yet.", saved: "Rows saved: {n}. Train with --data_path on the file.",
    savedOne: "Saved 1 row. Train with --data_path on the file.",
    rename: "Rename", remove: "Delete", removed: "Deleted.", undo: "Undo", untitled: "New chat", title: "Title",
    full: "The browser's storage is full: new messages are lost when this tab closes. Save and delete old chats.",
    noStorage: "This browser keeps nothing for this page: save the chat before you close the tab.",
    system: "System prompt", systemHint: "What the model is told before the conversation",
    tools: "Tools (JSON)", toolsHint: "A list of functions, as in OpenAI's interface", toolsWrong: "Expected a JSON list of functions: {message}",
    thisChat: "This chat", allChats: "All chats", own: "model's own",
    temperature: "Temperature", top_p: "Top p", top_k: "Top k", max_tokens: "Max tokens", frequency_penalty: "Frequency penalty",
    seedSetting: "Seed", random: "random", blind: "Hide the models' names until I vote", numberWrong: "Expected a number from {min} to {max}.",
    key: "API key", keyHint: "Only if the server asks for one; forgotten when this tab closes",
    language: "Language", theme: "Theme", system_theme: "As the system", browserLanguage: "As the browser", light: "Light", dark: "Dark", toEnd: "To the end",
    connecting: "Connecting …", done: "Done",
  },
  zh: {
    page: "对话", skip: "跳到输入框", chats: "对话列表", newChat: "新对话", menu: "对话列表",
    close: "关闭", settings: "设置", model: "模型", compare: "对比", compareWith: "和",
    compareHint: "同时问两个模型，再投票", think: "思考", thinkHint: "让模型先思考再回答",
    message: "输入消息", send: "发送", stop: "停止", keys: "Enter 发送，Shift + Enter 换行，Esc 停止",
    welcome: "想聊点什么？", welcomeNote: "对话只保存在这个浏览器里，服务器不会留存。",
    example1: "你是谁？", example2: "“钱”用英语怎么说？", example3: "日本的首都是哪里？", example4: "星期一、星期二、星期三，下一个是什么？",
    question: "你", answer: "回答", answerA: "回答 A", answerB: "回答 B", copy: "复制", copied: "已复制",
    notCopied: "复制失败", edit: "编辑", regenerate: "重新回答", cancel: "取消", sendEdited: "发送",
    earlier: "上一个版本", later: "下一个版本", version: "{at} / {all}",
    thinking: "思考中……", thought: "思考过程", writing: "模型正在回答。", ended: "回答：",
    table: "表格", tokens: "{n} 个 token", oneToken: "1 个 token", speed: "{n} token/秒", first: "首个 token 用时 {n} 秒", seed: "种子 {n}",
    call: "调用", callResult: "{name} 的结果", callHint: "函数返回的内容", sendResults: "发送结果", results: "结果",
    cutLength: "回答达到 token 上限，在此截断。", cutStopped: "已停止。",
    cutBroken: "连接中断，已收到的内容保留在上面。",
    noServer: "服务器没有响应。", tryAgain: "重试", refused: "服务器提示：{message}",
    busy: "服务器繁忙，请在 {n} 秒后重试。", keyNeeded: "服务器需要 API 密钥。", enterKey: "输入密钥",
    noModels: "没有模型", empty: "模型没有输出任何内容。", onlyThoughts: "模型只进行了思考，没有给出回答。",
    vote: "哪个回答更好？", voteA: "A 更好", voteB: "B 更好", voteTie: "一样好", voteBad: "都不好",
    voted: "你的投票：{vote}。", goesOn: "对话从回答 {side} 继续。",
    votes: "投票", noVotes: "还没有投票。点“对比”同时问两个模型，再选出更好的回答。",
    wins: "{model} 胜", ties: "平局", bothBad: "都不好", models: "模型",
    saveVotes: "保存全部投票（JSON）", savePreferences: "保存为偏好数据（JSONL）",
    exportOne: "保存本对话（JSONL）", exportAll: "保存全部对话（JSONL）", votesAndTally: "投票结果",
    nothingToSave: "还没有完整的回答可以保存。", saved: "已保存 {n} 行，可直接用 --data_path 训练。",
    savedOne: "已保存 1 行，可直接用 --data_path 训练。",
    rename: "重命名", remove: "删除", removed: "已删除。", undo: "撤销", untitled: "新对话", title: "标题",
    full: "浏览器的存储空间已满：关闭标签页后新消息会丢失。请保存并删除旧对话。",
    noStorage: "浏览器不会保留本页的内容，关闭标签页前请先保存对话。",
    system: "系统提示词", systemHint: "对话开始前告诉模型的话",
    tools: "工具（JSON）", toolsHint: "函数列表，格式与 OpenAI 接口相同", toolsWrong: "应为函数的 JSON 列表：{message}",
    thisChat: "本对话", allChats: "全部对话", own: "模型默认值",
    temperature: "温度", top_p: "Top p", top_k: "Top k", max_tokens: "最大 token 数", frequency_penalty: "频率惩罚",
    seedSetting: "随机种子", random: "随机", blind: "投票前隐藏模型名称", numberWrong: "应为 {min} 到 {max} 之间的数。",
    key: "API 密钥", keyHint: "仅在服务器要求时填写，关闭标签页后即清除",
    language: "语言", theme: "外观", system_theme: "跟随系统", browserLanguage: "跟随浏览器", light: "浅色", dark: "深色", toEnd: "回到底部",
    connecting: "正在连接……", done: "完成",
  },
};

let language = "en";

/** Chooses the language of the page: "en" or "zh". */
export function setLanguage(name) {
  language = name in STRINGS ? name : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
}

export const languageOfBrowser = () => (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

/** Returns a text in the page's language, with `{name}` replaced by values. */
export function t(key, values = {}) {
  return STRINGS[language][key].replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** Writes the texts of all elements that name one: data-text, data-label (for screen readers and on hover), data-hint. */
export function translate(root) {
  for (const one of root.querySelectorAll("[data-text]")) one.textContent = t(one.dataset.text);
  for (const one of root.querySelectorAll("[data-label]")) {
    one.setAttribute("aria-label", t(one.dataset.label));
    one.title = t(one.dataset.label);
  }
  for (const one of root.querySelectorAll("[data-hint]")) one.setAttribute("placeholder", t(one.dataset.hint));
}
