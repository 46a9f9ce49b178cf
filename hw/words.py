"""Every word of the console in English and Chinese: commands, their help, what is said. Pure; one table each.

Both languages' words are understood always; `language` chooses in which the console answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from hw.settings import SETTINGS, VALUES_CHINESE, find_setting

LANGUAGES: Final = ("en", "zh")


class Word(NamedTuple):
    """One command."""

    name: str
    chinese: str
    usage: tuple[str, str]
    help: tuple[str, str]
    after: tuple[tuple[str, str], ...] = ()
    """What may follow, English and Chinese."""


WORDS: Final = (
    Word("help", "帮助", ("help [WORD]", "帮助 [命令]"), ("what there is, or more of one word", "列出命令，或说明一个命令")),
    Word("status", "状态", ("status", "状态"), ("how the router is", "设备状态")),
    Word("show", "查看", ("show", "查看"), ("what is staged, and would change", "查看暂存的修改")),
    Word("set", "设置", ("set SETTING VALUE", "设置 项目 值"), ("stage a setting", "暂存一项设置")),
    Word("unset", "清除", ("unset SETTING", "清除 项目"), ("stage its default", "恢复一项设置的默认值")),
    Word("discard", "放弃", ("discard", "放弃"), ("forget what is staged", "放弃暂存的修改")),
    Word("policy", "策略", ("policy [explain NAME]", "策略 [解释 域名]"),
         ("what is blocked; what is decided for a name, and why", "策略状态；解释对域名的判定"), (("explain", "解释"),)),
    Word("certificate", "证书", ("certificate request|renew|install", "证书 申请|更新|安装"),
         ("the request for the centre's authority; take its answer", "生成证书申请；粘贴安装签发的证书"),
         (("request", "申请"), ("renew", "更新"), ("install", "安装"))),
    Word("test", "测试", ("test", "测试"), ("does everything work? what is not ok, why, and the mend", "自检：问题、原因与处理办法")),
    Word("commit", "提交", ("commit [SECONDS]", "提交 [秒数]"),
         ("check, put in place, test; with SECONDS: taken back unless confirmed in time",
          "校验、生效并自检；带秒数时须在限期内确认，否则自动回滚")),
    Word("confirm", "确认", ("confirm", "确认"), ("keep what was committed with SECONDS", "保留待确认的提交")),
    Word("rollback", "回滚", ("rollback", "回滚"), ("back to before the last commit", "恢复到上次提交之前")),
    Word("password", "密码", ("password", "密码"), ("change the console's password", "修改控制台密码")),
    Word("language", "语言", ("language en|zh", "语言 英文|中文"), ("in which it answers", "选择语言"),
         (("zh", "中文"), ("en", "英文"))),
    Word("history", "历史", ("history", "历史"), ("what was typed", "输入过的命令")),
    Word("factory-reset", "恢复出厂", ("factory-reset", "恢复出厂"),
         ("Gatehouse as it came; its records and the network stay", "恢复 Gatehouse 出厂设置（保留审计记录和网络设置）")),
    Word("exit", "退出", ("exit", "退出"), ("log out", "退出登录")),
)  # fmt: skip
_ALIASES: Final = {"?": "help", "quit": "exit", "logout": "exit"}

SAYINGS: Final = {
    "banner": ("Gatehouse console", "Gatehouse 控制台"),
    "first": ("No password is set yet. Choose one: 8 characters or more.", "尚未设置密码。请设置至少 8 个字符的密码。"),
    "new": ("New password: ", "新密码: "),
    "again": ("Once more: ", "再输一次: "),
    "differ": ("The two are not the same.", "两次输入不一致。"),
    "password": ("Password: ", "密码: "),
    "wrong": ("That is not the password.", "密码错误。"),
    "locked": ("Locked after five failures. Try again in {0} s.", "连续五次密码错误，已锁定。请在 {0} 秒后重试。"),
    "welcome": ("Logged in. `help` says what there is, Tab completes.", "已登录。输入“帮助”查看命令，Tab 键补全。"),
    "idle": ("Nothing was typed for {0} s: logged out.", "{0} 秒无操作，已退出登录。"),
    "bye": ("Logged out.", "已退出登录。"),
    "noise": ("That line was hurt on its way; it was not read. (Is the speed right?)", "该行在传输中受损，未执行。（波特率是否正确？）"),
    "unknown": ("Unknown word {0!r}. `help` lists them.", "未知命令“{0}”。输入“帮助”查看命令。"),
    "near": ("Unknown word {0!r}; did you mean {1!r}?", "未知命令“{0}”，是否指“{1}”？"),
    "staged": ("staged: {0}", "已暂存: {0}"),
    "nothing": ("Nothing is staged.", "没有暂存的修改。"),
    "discarded": ("Everything staged is forgotten.", "已放弃全部暂存的修改。"),
    "checking": ("checking, putting in place, testing …", "正在校验、生效、自检 …"),
    "committed": ("Committed.", "已提交。"),
    "confirm": ("Committed; `confirm` within {0} s, or it is taken back.", "已提交；请在 {0} 秒内输入“确认”，否则自动回滚。"),
    "confirmed": ("Confirmed: it stays.", "已确认，配置保留。"),
    "taken_back": ("Taken back, the old configuration is in place: {0}", "自检未通过，已恢复原配置: {0}"),
    "not_confirmed": ("Nobody confirmed in time: the old configuration is in place.", "未在限期内确认，已恢复原配置。"),
    "rolled_back": ("The configuration of before the last commit is in place.", "已恢复到上次提交之前的配置。"),
    "changed": ("The password is changed.", "密码已修改。"),
    "sure": ("Type the device's id, or {0!r}, to go through with it: ", "请输入设备编号或“{0}”以确认: "),
    "not_done": ("Not done.", "未执行。"),
    "reset": ("Reset. The router starts anew.", "已恢复出厂设置，设备将重新启动。"),
    "paste": ("Paste the certificate, up to its END line:", "请粘贴证书，直至 END 行:"),
    "installed": ("Installed: {0}", "已安装: {0}"),
    "error": ("error: {0}", "错误: {0}"),
    "ok": ("ok", "正常"),
    "not_ok": ("NOT OK", "异常"),
    "mend": ("mend: {0}", "处理: {0}"),
    "all_ok": ("Everything is ok.", "全部正常。"),
    "some_not_ok": ("{0} of {1} not ok.", "{1} 项中 {0} 项异常。"),
    "secret": ("Its password: ", "请输入其密码: "),
    "inline": ("Not taken: a password is typed when it is asked for, so that nobody reads it here.", "未执行：密码请在提示时输入，避免显示在屏幕上。"),
    "busy": ("A script is at work on this line.", "脚本正在使用此线路。"),
    "language": ("English from now on.", "现在使用中文。"),
}  # fmt: skip


def say(language: str, what: str, *values: object) -> str:
    """A saying in one of LANGUAGES."""
    return SAYINGS[what][LANGUAGES.index(language)].format(*values)


def find_word(typed: str) -> Word | None:
    """By either name."""
    typed = _ALIASES.get(typed, typed)
    return next((word for word in WORDS if typed in (word.name, word.chinese)), None)


def complete(before: str, language: str) -> tuple[str, Sequence[str]]:
    """For the editor's Tab: what to add, else what there is to choose from."""
    words = before.split()
    begun = "" if not before or before.endswith(" ") else words.pop()
    choices = _following(words)
    # Whoever has begun a word in Chinese goes on in Chinese.
    index = 1 if (language == "zh" if not begun else not begun.isascii()) else 0
    fitting = [choice[index] for choice in choices if choice[index].startswith(begun)]
    if not fitting:
        return "", ()
    common = fitting[0]
    for choice in fitting[1:]:
        while not choice.startswith(common):
            common = common[:-1]
    more = common[len(begun) :] + (" " if len(fitting) == 1 else "")
    return (more, ()) if more.strip() or len(fitting) == 1 else ("", fitting)


def _following(words: Sequence[str]) -> list[tuple[str, str]]:
    """What may come after these."""
    if not words:
        return [(word.name, word.chinese) for word in WORDS]
    word = find_word(words[0])
    if word is None:
        return []
    if word.name == "help" and len(words) == 1:
        return [(each.name, each.chinese) for each in WORDS] + [(each.name, each.chinese) for each in SETTINGS]
    if word.name in ("set", "unset") and len(words) == 1:
        return [(setting.name, setting.chinese) for setting in SETTINGS]
    if word.name == "set" and len(words) == 2 and (setting := find_setting(words[1])):
        return [(value, VALUES_CHINESE.get(value, value)) for value in setting.values]
    return list(word.after) if len(words) == 1 else []


def help_lines(language: str, words: Sequence[str]) -> list[str]:
    """Of everything, or of one command or setting."""
    index = LANGUAGES.index(language)
    if words and (word := find_word(words[0])):
        lines = [f"{word.usage[0]}  |  {word.usage[1]}", f"  {word.help[index]}"]
        if word.name in ("set", "unset"):
            lines += [f"  {s.name}  {s.chinese}  {s.help[index]}  ({s.example})" for s in SETTINGS]
        return lines
    if words and (setting := find_setting(words[0])):
        return [f"set {setting.name} {setting.example}  |  设置 {setting.chinese} {setting.example}",
                f"  {setting.help[index]}"]  # fmt: skip
    return [f"  {word.usage[0]}  |  {word.usage[1]}\r\n      {word.help[index]}" for word in WORDS]
