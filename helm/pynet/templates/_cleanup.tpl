{{/* What the uninstall hook's Job runs on every node. An init container does the work: its termination message is the result. */}}
{{- define "pynet.cleanupDaemonSet" -}}
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ include "pynet.name" . }}-cleanup
  namespace: {{ .Release.Namespace | quote }}
  {{- include "pynet.metadata" (dict "root" . "component" "cleanup") | nindent 2 }}
spec:
  selector:
    matchLabels: {{- include "pynet.selector" . | nindent 6 }}
      app.kubernetes.io/component: cleanup
  template:
    metadata:
      {{- include "pynet.metadata" (dict "root" . "component" "cleanup" "extra" .Values.podLabels "annotations" .Values.podAnnotations) | nindent 6 }}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      {{- include "pynet.nodePod" . | nindent 6 }}
      tolerations: {{ toJson .Values.tolerations }}
      initContainers:
        - name: cleanup
          image: {{ include "pynet.image" . | quote }}
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          # Says in its termination message what was removed and what stays; the Job reads that.
          command: [python3, -m, pynet.uninstall, --node, --config=/etc/pynet/config.yaml]
          terminationMessagePolicy: FallbackToLogsOnError
          resources: {{- toYaml .Values.installResources | nindent 12 }}
          securityContext: {{- include "pynet.securityContext" (dict "root" . "add" (include "pynet.agentCapabilities" . | fromJsonArray)) | nindent 12 }}
          volumeMounts: {{- include "pynet.mounts" . | nindent 12 }}
            - {name: cni-bin, mountPath: {{ .Values.hostPaths.cniBin | quote }}}
      containers:
        - name: done
          image: {{ include "pynet.image" . | quote }}
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          command: [python3, -c, "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {15}); signal.sigwait({15})"]
          resources: {{- toYaml .Values.installResources | nindent 12 }}
          securityContext: {{- include "pynet.securityContext" (dict "root" . "add" list) | nindent 12 }}
      volumes: {{- include "pynet.volumes" . | nindent 8 }}
{{- end }}
