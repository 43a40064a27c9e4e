# quickstart.sh and test.sh source this file. `set_up FILE` finds Python, creates .venv and installs the packages that
# FILE pins. It returns at once if the same pins are already installed.

find_python() {
    local candidate
    for candidate in python3 python python3.11 python3.12 python3.13; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "需要 Python 3.11 或更新的版本：请从 python.org 安装，或运行 apt install python3 / conda create -n sft python=3.11" >&2
    return 1
}

set_up() {
    local requirements=$1 stamp=.venv/installed-$1.txt python
    if cmp -s "$requirements" "$stamp" && cmp -s requirements.txt .venv/installed-base.txt; then
        return
    fi
    python=$(find_python) || return 1
    [ -x .venv/bin/python ] || [ -x .venv/Scripts/python.exe ] || "$python" -m venv .venv || {
        echo "无法建立 .venv：Debian/Ubuntu 请先 apt install python3-venv" >&2
        return 1
    }
    activate
    echo "安装依赖（$requirements）……" >&2
    python -m pip install --quiet --disable-pip-version-check -r "$requirements" || {
        echo "安装失败：请检查网络或 pip 镜像设置后重新运行" >&2
        return 1
    }
    cp requirements.txt .venv/installed-base.txt
    cp "$requirements" "$stamp"
}

activate() {
    # On Windows (Git Bash) the scripts are in another folder.
    if [ -f .venv/Scripts/activate ]; then source .venv/Scripts/activate; else source .venv/bin/activate; fi
    export PYTHONUTF8=1
}

# Install Chromium for the tests that open pages in a browser. Without it these tests are skipped with a reason.
set_up_browser() {
    if command -v chromedriver >/dev/null; then
        return
    fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "没有 chromium 和 chromedriver：跳过要用浏览器的测试（Debian：apt-get install chromium chromium-driver）" >&2
        return
    fi
    echo "安装 chromium，测试网页用……" >&2
    {
        timeout 120 apt-get update && DEBIAN_FRONTEND=noninteractive timeout 300 \
            apt-get install --yes --no-install-recommends chromium chromium-driver
    } >/dev/null 2>&1 || echo "chromium 安装不上：跳过要用浏览器的测试" >&2
}
